"""PocketLLM: a daemon that teaches a small language model to write like its owner, on the owner's device."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pocketllm")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0+checkout"
