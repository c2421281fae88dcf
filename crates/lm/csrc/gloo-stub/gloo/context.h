// libtorch has gloo inside, and ProcessGroupGloo.hpp names a few of its classes, but the headers are not delivered. c10d.cpp
// only passes pointers to them: these declarations are all that it takes.
#pragma once

#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
}
