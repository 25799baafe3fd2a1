"""What a judge is asked, and what its reply says. Pure but for reading rubric folders."""
