"""Who may do what: oslo.policy with Nova's rule names, and the operator's policy.yaml.

A rule's outcome depends on the caller and on a few words about the target; it is kept until the file
changes, so that a check costs a look-up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog
from oslo_config import cfg
from oslo_policy import _checks
from oslo_policy import policy as oslo

from kilonova.api.policy_rules import BASE, RULES
from kilonova.errors import Failed, Forbidden
from kilonova.model.context import RequestContext

log = structlog.get_logger("kilonova.api")

MAX_KEPT = 20_000
NO_FILE = "/nonexistent/policy.yaml"  # an absolute path, so that no directory is searched


class Policy:
    """The rules in force.  ``path`` is the operator's file of overrides, YAML or JSON; it need not exist."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises Failed for a file that cannot be read."""
        self.path = path
        self._stamp = self._file_stamp()
        self._kept: dict[tuple[Any, ...], bool] = {}
        self._enforcer = self._load()

    def _load(self) -> Any:
        if self.path is not None:
            _check(self.path)
        # Kinds of checks from other packages: our own rules use none, and to look for them in all that is
        # installed, and to import `requests` for those that call a server, is a quarter of a start.
        own_only = self.path is None or not self.path.exists()
        _checks.extension_checks = {} if own_only else None
        conf = cfg.ConfigOpts()
        conf([], project="kilonova", default_config_files=[], default_config_dirs=[])
        enforcer = oslo.Enforcer(conf, policy_file=str(self.path or NO_FILE))
        conf.set_override("policy_dirs", [], group="oslo_policy")
        enforcer.suppress_default_change_warnings = True
        enforcer.suppress_deprecation_warnings = True
        for name, check in BASE.items():
            enforcer.register_default(oslo.RuleDefault(name, check))
        for name, check in RULES.items():
            enforcer.register_default(oslo.RuleDefault(name, check, scope_types=["project"]))
        enforcer.load_rules()
        enforcer.use_conf = False  # it would look at the file at every check, and fall over a bad one
        return enforcer

    def _file_stamp(self) -> tuple[int, int] | None:
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size

    def refresh(self) -> None:
        """Take over changes of the file.  One with a fault is logged, and the rules stay as they are."""
        if self.path is None:
            return
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._enforcer = self._load()
        except Failed as error:
            log.error("policy rules stay as they were", error=str(error))
        else:
            self._kept.clear()

    def allows(self, context: RequestContext, rule: str, target: dict[str, Any] | None = None) -> bool:
        """Whether the caller may do ``rule`` to ``target``; None: to what is his own project's.

        Raises KeyError for a rule that does not exist.
        """
        match = None if target is None else tuple(target.items())
        scope = (context.project_id, context.domain_id, context.system_scope)
        key = (rule, context.user_id, context.roles, scope, match)
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            found = self._kept[key] = self._ask(context, rule, target)
        return found

    def _ask(self, context: RequestContext, rule: str, target: dict[str, Any] | None) -> bool:
        if rule not in RULES:
            raise KeyError(f"there is no policy rule {rule}")
        if target is None:
            target = {"project_id": context.project_id, "user_id": context.user_id}
        try:
            return bool(self._enforcer.enforce(rule, target, context.policy_credentials()))
        except oslo.InvalidScope:
            return False
        except (ValueError, TypeError, RecursionError) as error:  # %(...)s that is none, rules in a circle
            log.error("policy rule allows nobody", rule=rule, error=repr(error))
            return False

    def enforce(self, context: RequestContext, rule: str, target: dict[str, Any] | None = None) -> None:
        """Raises Forbidden when ``allows`` says no."""
        if not self.allows(context, rule, target):
            raise Forbidden(f"Policy doesn't allow {rule} to be performed.")


def _check(path: Path) -> None:
    """Raises Failed, with what is wrong, unless the file has rule names and checks, or is not there."""
    try:
        found = oslo.parse_file_contents(path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise Failed(f"The policy file {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise Failed(f'The policy file {path} has no rules: lines of the form "name": "check" are expected.')
    for name, check in found.items():
        if not isinstance(name, str) or not isinstance(check, str):
            raise Failed(f"The policy file {path} is wrong at {name!r}: a rule is a text, not {check!r}.")
