"""From a path or URL to arrays: where a store lies, what its files say, each chunk checked as it is read."""
