"""`python -m rankmixer ...`: the command, as torchrun and the TorchX component start it."""

from rankmixer.launch.cli import command

if __name__ == "__main__":
    command()
