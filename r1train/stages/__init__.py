"""What a recipe is made of, one file for each kind of stage."""
