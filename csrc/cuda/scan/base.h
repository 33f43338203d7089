// What programs have in common, before any of them.
#pragma once

#include "device/entry.h"
#include "elementwise.h"
#include "fold.h"
#include "program.h"
