"""The command line: parsing and printing, one short file a command."""
