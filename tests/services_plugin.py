"""Start the tests' own Postgres and Valkey before Django reads its settings."""
