"""The generator: a process that answers, in torch or by llama.cpp."""
