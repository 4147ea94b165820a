"""Who gets in, and how much one caller may ask."""
