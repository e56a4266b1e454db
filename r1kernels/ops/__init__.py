"""The ops: one file for each, with its schema, reference, fake, backward and cases."""
