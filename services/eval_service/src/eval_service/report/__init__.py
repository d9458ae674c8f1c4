"""What an evaluation leaves behind: report.json, report.csv, report.html and samples.csv."""
