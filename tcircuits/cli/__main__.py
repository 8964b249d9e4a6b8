"""`python -m tcircuits.cli`."""

from tcircuits.cli.main import main

raise SystemExit(main())
