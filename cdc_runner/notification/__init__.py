"""Sends notifications: what is due, to which channel, how, and again until it is delivered."""
