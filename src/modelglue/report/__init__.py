"""Tables, figures, one self-contained page: what was kept, what was dropped, and why."""
