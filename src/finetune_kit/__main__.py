"""The command line: `python -m finetune_kit`."""

from finetune_kit._cli.app import main

if __name__ == "__main__":
    main()
