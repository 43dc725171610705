"""The study and Dettmers et al. (2022): their published numbers, and the same tables and figures from stores."""
