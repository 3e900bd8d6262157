"""What makes and tests the course around the package, and is not in the wheel: run one with `python -m tools.NAME`.

pages: execute the pages and save their outputs.  seeds: run them with other seeds.  badges: launch badges and
install cells.  kit: slides, student copies and the instructor's guide.  All run in the top folder.
"""
