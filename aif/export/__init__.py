"""Write a dataset of pairs or completions to a folder, and publish it on the Hub. Calls no model.

- `formats` and `ultrafeedback`: the columns and rows of each format, such as `trl`.
- `dataset`: writes a folder with data files, card and run.json. The folder is written completely or not at all.
- `publish`: uploads that folder to the Hub.
"""
