# Everything that is done to this project; `make help` lists it.  CI runs `make test`.
SHELL := /bin/bash
PYTHON := $(firstword $(wildcard /usr/bin/python3.11 /usr/bin/python3.12 /usr/bin/python3.13 /usr/bin/python3) python3)
BIN := .venv/bin
STATE ?= /var/lib/kilonova/demo
IMAGE := .demo/kn-guest.qcow2
.DEFAULT_GOAL := help
.PHONY: help install host fleet client demo demo-fleet demo-two-hosts up down test test-moves check bench capabilities clean apt-base apt-run apt-fleet apt-test

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/made:
	$(PYTHON) -m venv .venv
	touch $@

.venv/base: requirements.lock pyproject.toml | .venv/made
	$(BIN)/pip install -q -r requirements.lock
	$(BIN)/pip install -q --no-deps -e .
	touch $@

.venv/host: requirements-host.lock | .venv/base
	$(BIN)/pip install -q -r requirements-host.lock
	touch $@

.venv/fleet: requirements-fleet.lock | .venv/base
	$(BIN)/pip install -q -r requirements-fleet.lock
	touch $@

.venv/test: requirements-test.lock | .venv/base
	$(BIN)/pip install -q -r requirements-test.lock
	touch $@

apt-base:
	tools/install-packages.sh tools/apt/base.txt
apt-run:
	tools/install-packages.sh tools/apt/run.txt
apt-fleet:
	tools/install-packages.sh tools/apt/fleet.txt
apt-test:
	tools/install-packages.sh tools/apt/run.txt tools/apt/test.txt

install: apt-base .venv/base ## make .venv with the kilonova command (fake hypervisor)
host: apt-run .venv/host ## add what real guests and agents need: libvirt, os-vif, the client of NATS
fleet: apt-base .venv/fleet ## add what a controller of many hosts needs: PostgreSQL's and NATS' clients
client: install ## add the openstack client to .venv
	$(BIN)/pip install -q -c requirements-test.lock python-openstackclient

demo: host client ## start a cloud on this machine and boot a real VM in it
	tools/host-daemons.sh up
	tools/guest-image/build.sh $(IMAGE)
	$(BIN)/kilonova demo --state-dir $(STATE) --image $(IMAGE)

demo-fleet: fleet apt-fleet ## boot servers on 50 simulated hosts while a controller and the bus are killed
	$(BIN)/kilonova demo-fleet

demo-two-hosts: host fleet apt-fleet ## live-migrate a server between two hosts under a ping and an open connection
	tools/guest-image/build.sh $(IMAGE)
	KILONOVA_SANDBOX_BARE=1 tools/sandbox.sh $(BIN)/kilonova demo-two-hosts --image $(IMAGE)

down: ## end what the demo started: servers, cloud, networks, daemons
	[ ! -e $(STATE) ] || $(BIN)/kilonova demo --stop --state-dir $(STATE)
	tools/host-daemons.sh down

up: install ## run a fake cloud in the foreground
	$(BIN)/kilonova up --driver fake --state-dir .demo/fake

check: .venv/test ## ruff, mypy, import-linter and the size caps
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_size.py

test: apt-test .venv/test ## install what is needed and run every check and test
	tools/test.sh

test-moves: apt-test .venv/test ## have moves on real hosts meet every fault at every moment, or what MATRIX chooses
	MATRIX="$(or $(MATRIX),all)" KILONOVA_SANDBOX_BARE=1 tools/sandbox.sh $(BIN)/pytest -q -s -m real tests/real/moves

bench: apt-run apt-fleet .venv/test .venv/host ## measure: one process, scheduler, placement, resources, cells, many hosts, moves
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.schedule
	$(BIN)/python -m bench.placement
	$(BIN)/python -m bench.resources
	$(BIN)/python -m bench.cells
	$(BIN)/python -m bench.fleet
	$(BIN)/python -m bench.moves
	$(BIN)/python -m bench.fleet --rest --hosts 1000 --servers 10000
	$(BIN)/python -m bench.transfer
	tools/guest-image/build.sh $(IMAGE)
	KILONOVA_SANDBOX_BARE=1 tools/sandbox.sh $(BIN)/python -m bench.live --image $(IMAGE)

capabilities: ## how many of nova/compute's capabilities are proven by tests
	@$(PYTHON) tools/capabilities.py

clean: ## remove what was made here
	rm -rf .venv .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
