"""The command line: commands/ has one module a command, views/ what each prints, main.py the app and its exit codes.

Whatever a user of the library needs is in the packages below: this one parses arguments, asks for confirmation, prints.
"""
