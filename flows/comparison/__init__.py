"""Studies side by side: what each reached, with intervals, and what it cost."""
