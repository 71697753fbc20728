from fishladder.cli import main

raise SystemExit(main())
