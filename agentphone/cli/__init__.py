"""What the commands do and how it looks on a terminal. The command line itself is read in `agentphone.__main__`."""
