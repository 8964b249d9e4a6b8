"""`python -m tcircuits.cli`."""

from tcircuits.cli.entry import main

raise SystemExit(main())
