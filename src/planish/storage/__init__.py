"""Files written whole or not at all, one process in a folder, and where planish's own files lie."""
