"""Three steps of `qia3 learn`, run by test_arm.py on an emulated processor: learning.py BUNDLE EXAMPLES."""

import sys
from pathlib import Path

from qia3.learn.learn import learn
from qia3.learn.lesson import Lesson
from qia3.recipe import Train

bundle, examples = map(Path, sys.argv[1:])
settings = Train(steps=3, batch_size=4, learning_rate=3e-2, warmup_steps=1)
learn(bundle, Lesson("mine", examples, prompt="Topic of {text}?", settings=settings), threads=1)
