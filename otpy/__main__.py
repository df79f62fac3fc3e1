"""``python -m otpy`` is ``otpy``."""

from otpy.cli import main

if __name__ == "__main__":
    main()
