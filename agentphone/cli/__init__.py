"""The command line: its commands, what they do, and how it looks. How a run ends is said in `agentphone.__main__`."""
