"""The generator: a process that generates text, with llama.cpp or torch."""
