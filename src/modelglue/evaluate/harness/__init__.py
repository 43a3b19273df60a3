"""lm-evaluation-harness's tasks, answered by our models; through its public interface alone.

`task.py` is what the rest of the project sees; only the other files import the harness, which takes
seconds, and only when a task of it is used.
"""
