"""llama.cpp as a decoder."""
