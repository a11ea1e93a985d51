"""`python -m liquidcli` and the console script `liquid`."""


def main() -> None:
    from .cli.app import main as run

    run()


if __name__ == "__main__":
    main()
