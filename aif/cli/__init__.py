"""The command line: commands/ parses the arguments of each command, views/ prints its results, main.py runs the app.

It only parses arguments, asks for confirmation and prints; all other functions are in the packages below.
"""
