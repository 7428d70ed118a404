"""The networks a plan may name, and what is done with them: initialise, preprocess, train, measure."""
