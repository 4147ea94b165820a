"""Tables, migrations, and every query of the program."""
