//! Outside systems behind small traits: the log, objects, and the Source and Sink seams.
