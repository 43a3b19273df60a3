"""A bundle behind OpenAI's HTTP interface: each request is routed, and one expert answers it.

run.py, assemble.py   from a folder and settings to a running server
application.py        its addresses      gateway.py   what they share
answers.py            admit, read, route, answer, write down
guard.py              keys, bodies, clients that leave
connections.py        those that take up room and ask for nothing
requests.py           what clients may ask   replies.py   what they get   refusals.py   or not
backend.py            who answers:
  local.py, pool.py, writing.py                           an expert in this process
  upstreams.py, replicas.py, probing.py, upstream_config.py, events.py   or one elsewhere
access.py, metrics.py   the log, and what Prometheus reads
"""
