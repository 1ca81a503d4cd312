"""The command line: its commands and output formats. The entry point, with the exit codes, is `agentphone.__main__`."""
