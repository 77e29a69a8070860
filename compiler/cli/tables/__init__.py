"""What commands show of a result: tables for a terminal."""
