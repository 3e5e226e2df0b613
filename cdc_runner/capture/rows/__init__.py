"""Row messages in the form of the protocol `pgoutput`, which both capture engines keep, and how they become rows."""
