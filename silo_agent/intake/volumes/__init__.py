"""Series to volume: slices are sorted, checked and stacked by their own geometry, and everything doubtful is refused.

`reading` opens files, `stacks` and `geometry` decide without any, `select` applies the plan's rule, `assemble`
reads the pixels of what was selected. `scan` does it for a plan and with `intake.masks`, the files being opened by a
process of its own: `reader` and `opened` there, `process` and `files` here.
"""
