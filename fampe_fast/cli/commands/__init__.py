"""Hold the commands, one module each: ``add_parser`` adds the arguments, ``run`` works and gives the exit code."""
