"""The command line: one module for each verb. It parses, calls the library and shows. The only room that prints."""
