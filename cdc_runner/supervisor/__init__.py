"""The supervisor: one operating system process for each pipeline that the catalog wants to run.

main       `run()`: signals, the loop, the orderly end
follow     the one thread that talks to the config database
reconcile  what to do about one pipeline; pure
worker     one pipeline under supervision: its process, failures, back-off
child      one operating system process, started by exec
log_file   the log of a pipeline process: rotation, the class of its last error
health     GET /health and GET /live
"""
