"""``python -m kilonova.cli``: the command without its script."""

from kilonova.cli.main import main

main()
