"""A fuzzer for the intake: damages readable DICOM files and holds what reading them does to a short list of promises.

`seeds` are the files it starts from, `mutations`, `fragments` and `bombs` the ways to damage one, `cases` what the case
of a number is made of. `judging` says what reading may do and `oracle` what pydicom alone reads; `child` is the process
that reads, `campaign` the parent that outlives it.
"""
