"""What checks came out with, in the forms that continuous integration reads."""
