"""The course: what a page is made of.  It sets up, states claims, asks questions, and shows figures and menus."""

from tlhelpers.course import drawings, overview, plots
from tlhelpers.course.exercise import Question, choice, near, question
from tlhelpers.course.pad import DrawingPad, drawing_pad
from tlhelpers.course.page import Machine, claim, claims_table, describe_machine, setup
from tlhelpers.course.plots import mean_and_error
from tlhelpers.course.widgets import download_button, explore
