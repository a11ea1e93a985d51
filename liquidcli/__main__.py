"""`python -m liquidcli` and the console script `liquid`."""

import sys


def main() -> None:
    try:
        from .cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
