package arm

// Parts of a Resource, under names that clients can use.
type (
	Container     = wireContainer
	ContainerView = wireContainerView
	Moment        = wireMoment
	Event         = wireEvent
)
