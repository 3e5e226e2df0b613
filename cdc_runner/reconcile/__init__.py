"""Compare both sides of a pipeline at one position while the stream flows, and put right what differs."""
