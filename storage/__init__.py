"""Tables, migrations, and all queries."""
